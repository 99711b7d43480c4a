"""What several mechanisms share: checks of arguments, masks and counts, unit rows, the fused kernel, tiles."""
