"""What counts as text."""

from hypothesis import example, given
from hypothesis import strategies as st

from mcip_qdrant.text import is_unicode


@example("photos/\ud800.jpg")
@example("\udfff")
@given(st.text(st.characters(exclude_categories=[])))
def test_it_is_what_utf_8_can_hold(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        assert not is_unicode(text)
    else:
        assert is_unicode(text)
