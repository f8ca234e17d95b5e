"""The demo checkpoint, the script that trained it, and the recipes."""
