"""What a grid will take, estimated before it starts from a few steps: hours, memory and disk."""
