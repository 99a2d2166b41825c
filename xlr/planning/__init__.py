"""What a run will take: memory, time, disk and money, by formula, before anything is computed."""
