"""For all tests: no generated test has a deadline, because nothing here asserts how fast a machine is; and each tries
fifty examples unless it says otherwise (`pytest --hypothesis-profile=thorough`: five hundred)."""

from hypothesis import settings

settings.register_profile("tollgate", deadline=None, max_examples=50)
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile("tollgate")
