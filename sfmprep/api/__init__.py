"""The library as one calls it: what lies in the rooms, with stores and models made."""
