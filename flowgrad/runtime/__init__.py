"""From a graph to numbers: specialisation, memory, threads, execution."""
