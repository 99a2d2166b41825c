"""May the reward be trusted in each language? A verdict with its evidence. Command: `xlr certify`."""
