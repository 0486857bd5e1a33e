"""Memory traffic in three tiers that are never mixed: CIO in elements (graph.py), modelled bytes (model.py), and bytes
that were measured, by a provider that is named (measured.py)."""
