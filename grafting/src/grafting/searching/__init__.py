"""The best plan under a budget: what each operator costs at each site, in loss and in time, and which to take."""
