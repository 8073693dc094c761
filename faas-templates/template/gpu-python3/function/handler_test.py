import unittest

from function import handler


class Handler(unittest.TestCase):
    def test_it_answers(self):
        self.assertEqual(handler.handle(None, None)["statusCode"], 200)
