"""Estimators of optical flow."""
