"""What a stranger's folder may make our libraries do: its configuration is read as data before a loader sees it."""
