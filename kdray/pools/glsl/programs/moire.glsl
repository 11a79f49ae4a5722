// Two sets of rings over one another.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at), a = vec2(random(0), random(1)) * 2.0 - 1.0, b = vec2(random(2), random(3)) * 2.0 - 1.0;
    float k = between(4, 6.0, 18.0), l = k * between(5, 0.8, 1.2);
    float rings = sin(k * length(p - a) - iTime) * sin(l * length(p - b) + 1.3 * iTime);
    vec3 other = palette(0.3 * (sin(k * dot(p, a)) + rings));
    colour = vec4(mix(mix(ink(6), ink(7), 0.5 + 0.5 * rings), other, 0.4 * random(8)), 1);
}
