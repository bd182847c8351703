"""A folder of images -> an indexed, split, inspected data set, and its pixels. Calls only config and errors."""
