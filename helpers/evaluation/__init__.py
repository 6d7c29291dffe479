"""Test sets, the table of all values, and the report."""
