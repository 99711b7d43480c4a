"""What several mechanisms share: checks of arguments, masks and counts, unit rows, tiles, the fused kernel."""
