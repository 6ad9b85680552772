"""Class names of the published data sets, their mask values, and colours to draw classes in."""

from __future__ import annotations

import numpy as np

ADE20K = tuple(
    """wall,building,sky,floor,tree,ceiling,road,bed,windowpane,grass,cabinet,sidewalk,person,earth,
    door,table,mountain,plant,curtain,chair,car,water,painting,sofa,shelf,house,sea,mirror,rug,
    field,armchair,seat,fence,desk,rock,wardrobe,lamp,bathtub,railing,cushion,base,box,column,
    signboard,chest of drawers,counter,sand,sink,skyscraper,fireplace,refrigerator,grandstand,path,
    stairs,runway,case,pool table,pillow,screen door,stairway,river,bridge,bookcase,blind,
    coffee table,toilet,flower,book,hill,bench,countertop,stove,palm,kitchen island,computer,
    swivel chair,boat,bar,arcade machine,hovel,bus,towel,light,truck,tower,chandelier,awning,
    streetlight,booth,television receiver,airplane,dirt track,apparel,pole,land,bannister,escalator,
    ottoman,bottle,buffet,poster,stage,van,ship,fountain,conveyer belt,canopy,washer,plaything,
    swimming pool,stool,barrel,basket,waterfall,tent,bag,minibike,cradle,oven,ball,food,step,tank,
    trade name,microwave,pot,animal,bicycle,lake,dishwasher,screen,blanket,sculpture,hood,sconce,
    vase,traffic light,tray,ashcan,fan,pier,crt screen,plate,monitor,bulletin board,shower,
    radiator,glass,clock,flag""".replace("\n    ", "").split(",")
)
VOC = tuple(
    """background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,
    motorbike,person,pottedplant,sheep,sofa,train,tvmonitor""".replace("\n    ", "").split(",")
)
#: Name -> value in Cityscapes' ``labelIds`` masks; its other values are not evaluated.
CITYSCAPES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}


def colours(count: int) -> np.ndarray:
    """Return distinct RGB colours (count, 3) of 8 bits, none of them black.

    Hues advance by the golden angle, so that neighbouring classes differ clearly; half of the
    colours are paler, and half are darker.
    """
    # Imported here, because training and evaluation draw nothing.
    from matplotlib.colors import hsv_to_rgb

    index = np.arange(count)
    hue = (0.6 + index * 0.61803398875) % 1
    saturation = np.where(index // 8 % 2 == 0, 0.85, 0.5)
    value = np.where(index // 4 % 2 == 0, 0.95, 0.7)
    return (255 * hsv_to_rgb(np.stack([hue, saturation, value], axis=-1))).round().astype(np.uint8)
