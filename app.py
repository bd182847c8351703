"""Thaw's home page: what this is, what the machine can do, and a way to a trained model without typing."""

from pages.shared.chrome import page


def main() -> None:
    page(
        "app.py",
        "Thaw fine-tunes pretrained image classifiers on your own images, in the browser. It shows "
        "which layers are worth training: freeze the others, and compare.",
    )
    # On a new server this imports torch, which takes seconds: the title is on the screen before.
    from pages.shared.home import draw_home

    draw_home()


main()
