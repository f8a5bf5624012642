"""What happened in a run, as data: layers, blocks, the manifest, what is out of line."""
