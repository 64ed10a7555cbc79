"""The recipes that come with sfmprep, one YAML file each; see `sfmprep recipes`."""
