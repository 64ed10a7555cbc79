"""Networks and classical operators behind the protocols of `protocols.py`."""
