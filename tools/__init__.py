"""What maintainers run: building assets, benchmarks, measurements. Users need none of it."""
