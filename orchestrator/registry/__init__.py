"""Models by name: their versions, aliases, traffic and metadata, and what the workers offer of them."""
