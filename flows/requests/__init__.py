"""What a user asks for, checked: requests, sweeps, policies, gates."""
