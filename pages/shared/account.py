"""Who is there: sign-in through Streamlit's own OpenID Connect, where the server's secrets have an ``[auth]`` section."""

from collections.abc import Mapping

import streamlit as st
from streamlit.errors import StreamlitSecretNotFoundError

from finetune_core.runs.store import Damaged, Run


def sign_in_asked() -> bool:
    """Whether people have to sign in on this server."""
    try:
        return "auth" in st.secrets
    except StreamlitSecretNotFoundError:
        return False


def gate() -> None:
    """Where people have to sign in, and this one has not: offer that, and show nothing else."""
    if not sign_in_asked() or st.user.is_logged_in:
        return
    st.title("Thaw", anchor=False)
    st.markdown("Fine-tune pretrained image classifiers. Sign in to continue.")
    named = [name for name, part in st.secrets["auth"].items() if isinstance(part, Mapping)]
    for name in named or [None]:
        words = f"Sign in with {name.capitalize()}" if name else "Sign in"
        st.button(
            words,
            type="primary",
            icon=":material/login:",
            on_click=st.login,
            args=(name,) if name else (),
        )
    st.stop()


def owner() -> str:
    """Whose the runs are that this session starts; empty where nobody signs in."""
    if not sign_in_asked():
        return ""
    claims = st.user.to_dict()
    return str(claims.get("email") or claims.get("sub") or claims.get("name") or "")


def may_change(run: Run | Damaged) -> bool:
    """Whether this session may stop, rename or delete a run: with sign-in, its owner only."""
    return not sign_in_asked() or (run.owner != "" and run.owner == owner())
