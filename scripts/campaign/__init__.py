"""The campaign: kills, signals, failing disks, bad inputs and fuzzing. `scripts/run_campaign.py` is its command."""
