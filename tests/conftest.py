"""For all tests: no generated test has a deadline, because nothing here asserts how fast a machine is."""

from hypothesis import settings

settings.register_profile("tollgate", deadline=None)
settings.load_profile("tollgate")
