// Facets: each cell is a plane with its own slope.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 0.9, 2.8);
    vec4 n = nearest(p, 1.0);
    vec2 tilt = 2.0 * dice2(n.zw + 3.0) - 1.0;
    vec3 normal = normalize(vec3(tilt, between(0, 0.5, 1.2)));
    float sheen = 0.5 + 0.5 * sin(3.0 * dot(p - n.zw, tilt) + iTime);
    colour = vec4(mix(ink(1), palette(dice(n.zw)), random(2)) * (lit(normal) * 0.9 + 0.3 * sheen - 0.15), 1);
}
