"""Tables and figures from records; torch is not needed."""
