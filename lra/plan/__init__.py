"""What a grid will take before it starts: hours, memory and disk, from a few measured steps."""
