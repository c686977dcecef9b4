from hypothesis import HealthCheck, settings

# A busy machine is slow, and slowness is no failure here: the tests have their own limits.
settings.register_profile("atelier", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("atelier")
