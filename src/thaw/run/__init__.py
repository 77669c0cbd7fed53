"""What a run keeps on the disk, and how it goes on, ends and is read again."""
