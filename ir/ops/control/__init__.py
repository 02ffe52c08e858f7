"""Control flow: If, Loop and Scan, and their derivatives."""
