"""Sign-in by Streamlit's OpenID Connect, for servers whose secrets have an ``[auth]`` section."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st
from streamlit import config
from streamlit.errors import StreamlitSecretNotFoundError

from finetune_core.errors import FinetuneError

if TYPE_CHECKING:
    # Importing it imports torch, and every page starts with this module.
    from finetune_core.runs.store import DamagedRun, Run

log = logging.getLogger(__name__)

_SHARED_KEYS = ("redirect_uri", "cookie_secret")
_PROVIDER_KEYS = ("client_id", "client_secret", "server_metadata_url")


class SignInError(FinetuneError):
    """Error in the sign-in settings. The message is for the operator, not for visitors."""


@dataclass
class ProcessState:
    """State of this process.

    The state is not in Streamlit's cache, because any browser can clear that cache.

    Attributes:
        sign_in: whether an ``[auth]`` section was there at any time since the server started.
        problem: the last problem that was logged.
    """

    sign_in: bool = False
    problem: str = ""


_STATE = ProcessState()


def is_sign_in_required() -> bool:
    """Return whether visitors have to sign in, even if the sign-in settings are unusable now."""
    try:
        return read_auth() is not None
    except SignInError:
        return True


def read_auth() -> Mapping[str, Any] | None:
    """Return the ``[auth]`` section of the server's secrets, or None on a server without sign-in.

    Raises:
        SignInError: if the secrets cannot be read, the section is incomplete, or the section has
            been removed since this server started.
    """
    secrets = _read_secrets()
    if "auth" in secrets:
        _STATE.sign_in = True
        return _check_auth(secrets["auth"])
    if _STATE.sign_in:
        raise SignInError(
            "The [auth] section of the secrets has gone while the server was running. "
            "Put it back, or restart the server to run it without sign-in."
        )
    return None


def require_sign_in() -> None:
    """Stop the page and offer to sign in, if this visitor has to sign in and has not."""
    try:
        auth = read_auth()
    except SignInError as error:
        _log_once(str(error))
        st.title("Thaw", anchor=False)
        st.error(
            "The sign-in settings of this server cannot be used. Nothing is shown until its "
            "operator has corrected them. The server's log says what is wrong.",
            icon=":material/lock:",
        )
        st.stop()
    _STATE.problem = ""
    if auth is None or st.user.is_logged_in:
        return
    st.title("Thaw", anchor=False)
    st.markdown("Fine-tune pretrained image classifiers. Sign in to continue.")
    names: list[str | None] = [*_list_providers(auth)]
    for name in names or [None]:
        text = f"Sign in with {name.capitalize()}" if name else "Sign in"
        st.button(
            text,
            type="primary",
            icon=":material/login:",
            on_click=st.login,
            args=(name,) if name else (),
        )
    st.stop()


def owner() -> str:
    """Return the owner of the runs that this session starts; empty on a server without sign-in."""
    if not is_sign_in_required():
        return ""
    claims = st.user.to_dict()
    return str(claims.get("email") or claims.get("sub") or claims.get("name") or "")


def can_change(run: "Run | DamagedRun") -> bool:
    """Return whether this session may stop, rename or delete a run.

    On a server with sign-in, only the owner of a run may.
    """
    return not is_sign_in_required() or (run.owner != "" and run.owner == owner())


def _read_secrets() -> Mapping[str, Any]:
    files: list[str] = config.get_option("secrets.files")
    is_configured = config.is_manually_set("secrets.files")
    for file in files:
        # Streamlit ignores a missing file, and treats a dangling link as missing.
        if not os.path.exists(file) and (is_configured or os.path.lexists(file)):
            raise SignInError(f"The secrets file {file} is not there. Put it back.")
        # Streamlit would wait for a FIFO, and block every page of the server.
        if os.path.exists(file) and not (os.path.isfile(file) or os.path.isdir(file)):
            raise SignInError(f"The secrets file {file} is no regular file. Replace it by one.")
    try:
        return st.secrets.to_dict()
    except (StreamlitSecretNotFoundError, OSError, ValueError, RecursionError) as error:
        # Streamlit has one exception for "no file anywhere" and "a file that cannot be parsed".
        if isinstance(error, StreamlitSecretNotFoundError) and not any(map(_exists, files)):
            return {}
        reason = " ".join(str(error).split())[:300]
        raise SignInError(f"The server's secrets cannot be read: {reason}. Correct them.") from None


def _exists(path: str) -> bool:
    """Return whether a path exists. A path that cannot be looked into counts as existing."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _check_auth(auth: Any) -> Mapping[str, Any]:
    if not isinstance(auth, Mapping):
        raise SignInError(
            "auth in the secrets is no section. Write it as [auth], with its keys below."
        )
    providers = {f"auth.{name}": auth[name] for name in _list_providers(auth)} or {"auth": auth}
    missing = [f"auth.{key}" for key in _SHARED_KEYS if not _is_given(auth, key)]
    for name, section in providers.items():
        missing += [f"{name}.{key}" for key in _PROVIDER_KEYS if not _is_given(section, key)]
    if missing:
        raise SignInError(f"The secrets lack {', '.join(missing)}. Add what is missing.")
    return auth


def _list_providers(auth: Mapping[str, Any]) -> list[str]:
    return [
        name for name, part in auth.items() if isinstance(part, Mapping) and name != "client_kwargs"
    ]


def _is_given(section: Mapping[str, Any], key: str) -> bool:
    value = section.get(key)
    # A public client (PKCE) has an empty secret.
    return isinstance(value, str) and (bool(value.strip()) or key == "client_secret")


def _log_once(problem: str) -> None:
    """Log a problem when it is new, so that visitors cannot fill the log."""
    if problem != _STATE.problem:
        _STATE.problem = problem
        log.error("%s Until then no page is shown.", problem)
