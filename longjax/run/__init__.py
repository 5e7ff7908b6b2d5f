"""What keeps a run alive and says how it went; the loop is train.py."""
