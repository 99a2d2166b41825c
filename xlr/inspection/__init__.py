"""Does the reward make sense? Its agreement with other rewards, its scale by language. Command: `xlr inspect`."""
