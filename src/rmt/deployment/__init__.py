"""Models for other runtimes: exported, compared with torch, and used in its place."""
