"""Arrays over devices: mesh, placement, gathered weights, processes."""
