"""How hard the tests here try: a few of each kind by default, many in `make faults`."""

import hypothesis

hypothesis.settings.register_profile(
    "few", max_examples=25, deadline=None, derandomize=True, database=None
)
hypothesis.settings.register_profile("many", max_examples=1000, deadline=None, database=None)
hypothesis.settings.load_profile("few")
