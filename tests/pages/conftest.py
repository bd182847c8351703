"""What the tests of pages share."""

import pytest
import streamlit as st


@pytest.fixture(autouse=True)
def fresh_process_state():
    """What the pages hold once a process belongs to another test's folder."""
    st.cache_resource.clear()
    yield
    st.cache_resource.clear()
