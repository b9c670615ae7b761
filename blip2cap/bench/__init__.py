"""Speed of a model on this machine, by stage, beside what the machine allows and beside a plain script."""
