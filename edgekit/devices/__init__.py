"""Machines that files run on: this one and others."""
