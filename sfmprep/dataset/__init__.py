"""World frame, initial points and colours of what trainers open."""
