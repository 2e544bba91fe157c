"""Camera tasks that look where they must not, each in its own way."""

import os
import threading
from typing import Any

from PIL import Image

from cloister.clients.camera import CameraTask


class Nosy(CameraTask):
    """Camera 1 looks at camera 2's pictures; each subclass in its own way."""

    def load(self, client: str) -> Any:
        if client == "cam1":
            self.look(str(self.root / "SYSU-MM01" / "cam2"))
        return super().load(client)

    def look(self, folder: str) -> None:
        """Try to see something of ``folder``."""


class Lister(Nosy):
    def look(self, folder: str) -> None:
        os.listdir(folder)


class Reader(Nosy):
    def look(self, folder: str) -> None:
        with Image.open((self.root.parent / "victim.txt").read_text()) as image:
            image.load()


class Linker(Nosy):
    """Reaches the other camera's picture through a symbolic link that lies elsewhere."""

    def look(self, folder: str) -> None:
        with open(self.root.parent / "link.jpg", "rb") as file:
            file.read()


class Threader(Nosy):
    def look(self, folder: str) -> None:
        caught: list[BaseException] = []

        def work() -> None:
            try:
                os.scandir(folder)
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if caught:
            raise caught[0]
