"""One process per engine that `benchmarks.engine` measures, all answering the same questions."""
