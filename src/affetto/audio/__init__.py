"""From sound files to clips: decoding, manifests, corpus readers and their label tables, checks, splits."""
