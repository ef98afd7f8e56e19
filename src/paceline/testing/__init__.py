"""For tests of Paceline and of code that uses it: faults that are injected, not imagined."""
