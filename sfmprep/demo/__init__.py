"""A scene that is rendered here, so that its true poses are known."""
