"""Training of the weights that ship with the package; nothing else imports it."""
