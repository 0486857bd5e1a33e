"""Devices that files run on: what is known of their boards, and the way there."""
