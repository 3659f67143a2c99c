"""Search a pile of images by words and by pictures, with one embedding per image."""
