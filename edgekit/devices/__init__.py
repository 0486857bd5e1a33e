"""Machines that files run on, this one and others: what is known of their boards, and the way there."""
